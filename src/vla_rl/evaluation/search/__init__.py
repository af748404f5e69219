"""Best of N at test time: candidates, branches of the simulation, choosers."""

"""Many environments side by side: in worker processes, or in this one."""

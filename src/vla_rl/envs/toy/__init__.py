"""A small tabletop drawn with numpy: four tasks, no simulator to install, tens of thousands of steps a second."""

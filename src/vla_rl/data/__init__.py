"""Demonstrations: LeRobotDataset v3 on disk, arrays in memory."""

"""ManiSkill3: table-top tasks of a Franka Panda on SAPIEN's physics and renderer."""

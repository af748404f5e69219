"""Any Gymnasium environment as a suite: `gym:<id>`, or a function of yours that makes one."""

"""Training of BB-FCN as a detector: face chips, disc labels, objectives, mined false alarms, scores, publication."""

"""BB-FCN: chips of faces, disc labels, its two objectives, mined false alarms, scores, publication."""

"""Judge answers: metrics, their intervals, slices and the gate.  Pure; no files, no network."""

"""WHAT: the spec, the plan, the records and the errors.  Pure; no I/O but reading a spec."""

"""GATHER: what a report is made from: what a run left in a store, and the metric plug-ins here."""

"""Decide whether two SQL queries mean the same, by running them on small databases.

Knows the SQLite dialect and nothing of models, runs or predictions.  Runs queries on
in-memory databases only, under an authorizer that lets them read and nothing else.
"""

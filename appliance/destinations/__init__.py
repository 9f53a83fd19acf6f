"""Adapters to what we send to. They know neither journal nor spool."""

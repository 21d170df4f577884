"""Helpers without a room of their own. Import the modules; nothing is exported here."""

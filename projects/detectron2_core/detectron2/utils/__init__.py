"""Helper modules. Import them by their names, as nothing is exported here."""

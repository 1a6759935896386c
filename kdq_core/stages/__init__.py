"""The stages: functions of records. Importing this package imports no torch."""

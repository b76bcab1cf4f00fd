"""What every stage is: its record, and its section of the configuration."""

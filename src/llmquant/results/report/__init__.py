"""What people see of a comparison: pure functions of its rows."""

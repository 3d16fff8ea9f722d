"""The presentation of a comparison for people, as pure functions of its rows."""

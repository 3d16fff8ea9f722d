"""Inspection of models before they are loaded, without torch unless they are pickles."""

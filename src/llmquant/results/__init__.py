"""From stored runs to rows, comparisons and reports."""

"""What each method costs, measured side by side: jobs in, one JSON line a cell out."""

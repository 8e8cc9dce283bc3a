"""Quality on labelled data: predictions of every example, a metric, and runs that resume."""

"""What people do with verdicts: sampling, queue, decisions, appeals, lists, figures, audit."""

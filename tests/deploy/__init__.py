"""What is deployed: image, compose file, chart, dashboard, alerts, runbook."""

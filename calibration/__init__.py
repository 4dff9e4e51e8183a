"""Operating points: where to put the thresholds that turn scores into verdicts. No torch."""

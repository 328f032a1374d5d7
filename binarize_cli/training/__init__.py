"""Fine-tuning: the loop, what is minimised, schedules in time, hardening, state on disk."""

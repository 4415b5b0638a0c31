"""Resumable runs of generate and train, replay, report and pictures."""

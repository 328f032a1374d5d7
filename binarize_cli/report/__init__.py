"""Measurements -> report.json, report.html, tables for the terminal, plots."""

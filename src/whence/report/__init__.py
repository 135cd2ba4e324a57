"""The report: one HTML file that shows whom the scores name, and how far they can be trusted."""

from whence.report.case import ReportCase
from whence.report.page import write_report

__all__ = ["ReportCase", "write_report"]

"""From a case to what the page shows: texts, numbers and colours, decided here and only placed by the page's script."""

from whence.report.views.section import VIEWS, make_section

__all__ = ["VIEWS", "make_section"]

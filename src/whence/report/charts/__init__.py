"""Charts as inline pictures that follow the colours of the page: one picture serves light and dark."""

from whence.report.charts.agreement import agreement_svg
from whence.report.charts.concentration import concentration_svg
from whence.report.charts.heat_map import HeatMap, heat_maps_svg
from whence.report.charts.intervals import intervals_svg

__all__ = ["HeatMap", "agreement_svg", "concentration_svg", "heat_maps_svg", "intervals_svg"]

"""Records and the paper's reported numbers -> tables and figures. No torch: runs where only `results/` is present.

A notebook is `made = report.table2(report.load(benchmark)); made.save(); made`.
"""

from emigm.report.figures import Picture, figure1, figure4, figure5, figure6
from emigm.report.index import write_index
from emigm.report.results import Results, find_root, load, reported
from emigm.report.tables import Table, metrics_table, table2, table3, table4

__all__ = [
    "Picture",
    "Results",
    "Table",
    "figure1",
    "figure4",
    "figure5",
    "figure6",
    "find_root",
    "load",
    "metrics_table",
    "reported",
    "table2",
    "table3",
    "table4",
    "write_index",
]

"""Records and the paper's reported numbers -> tables and figures. No torch: runs where only `results/` is present.

A notebook is `made = report.table2(report.load(benchmark)); made.save(); made`.
"""

from emigm.report.ablations import figure2, figure3, figure7
from emigm.report.claims import all_claims, claims
from emigm.report.figures import Picture, figure1, figure4, figure5, figure6
from emigm.report.index import write_index
from emigm.report.results import Results, find_root, load, reported
from emigm.report.settings import table5, table6, table7
from emigm.report.systems import table1
from emigm.report.tables import Table, metrics_table, table2, table3, table4

__all__ = [
    "Picture",
    "Results",
    "Table",
    "all_claims",
    "claims",
    "figure1",
    "figure2",
    "figure3",
    "figure4",
    "figure5",
    "figure6",
    "figure7",
    "find_root",
    "load",
    "metrics_table",
    "reported",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "table7",
    "write_index",
]

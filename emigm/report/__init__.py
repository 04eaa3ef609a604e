"""Records and the paper's reported numbers -> tables and figures. No torch: runs where only `results/` is present.

A notebook is `made = table2(load(benchmark)); made.save(); made`. Import from the modules: matplotlib takes seconds to
load, and a table does without.
"""

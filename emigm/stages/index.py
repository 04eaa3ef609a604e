"""Write results/README.md, the page that shows every benchmark's tables and figures."""

from emigm.report.index import write_index

if __name__ == "__main__":
    write_index()

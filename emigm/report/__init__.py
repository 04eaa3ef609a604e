"""What the notebooks of tables and figures share: style, statistics, sentences, tables; and the pages made of them.

No torch: a notebook runs where only the tracked results are. Import from the modules, `statistics` and `notes` for
instance; matplotlib takes seconds to load, and a table does without.
"""

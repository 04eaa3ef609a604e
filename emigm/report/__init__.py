"""What the notebooks share: style, statistics, sentences, tables; and the pages made of them. No torch: a notebook runs
where only the tracked results are."""

"""The graphs of the reference engines, written by hand: every weight follows from a formula, none was learnt."""

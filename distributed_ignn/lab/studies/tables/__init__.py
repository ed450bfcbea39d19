"""Tables 1 and 3 and Figures 2 and 6 of the IGNN-Solver paper, trained again."""

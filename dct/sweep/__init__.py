"""Many fits: which ones a grid makes, what is known of each, who does them, and one page of all.

`grid` knows which fits there are; `cell` where one of them lies and whether it is done; `engines` who does them;
`facts` what came of them; `page` and `dct.plots` show it. How a fit is made and ranked is the command line's business.
"""

"""A run as a page: what was fitted, whether it can be trusted, and every vector with what the model says under it.

`facts` gathers what there is, as plain data; `page` makes one file of it, with the plots of `dct.plots`. No model is
loaded.
"""

from dct.report.facts import Facts as Facts
from dct.report.facts import gathered as gathered
from dct.report.page import rendered as rendered

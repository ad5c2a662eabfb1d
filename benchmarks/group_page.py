def write_page(run, page):
    pass

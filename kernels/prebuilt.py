def address(name, element):
    return None

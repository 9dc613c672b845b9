"""How long does it take on this machine, whole and layer by layer, at widths it has not yet?"""

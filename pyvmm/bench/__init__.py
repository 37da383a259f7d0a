"""What exits, conversions and a machine's life cost, beside the same calls from bare C.

``measure`` runs named cases in turns with their floors; ``exits``, ``conversions`` and
``lifecycle`` are the cases; ``comparison`` puts two results side by side.
"""

"""pyvmm"""

"""The Triton kernels, one a file. Imported only where they are launched: Triton may be absent.

Every function here launches one kernel and checks nothing: `turbovlm.kernels.ops` decides
whether its inputs fit and computes the same with torch where they do not.
"""

from setuptools import setup

setup(cffi_modules=["umappy/engine/build.py:ffibuilder"])

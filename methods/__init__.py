"""The built-in methods: one file or folder each, named after the method it defines; they import only `bench`."""

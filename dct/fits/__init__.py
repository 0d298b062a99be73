"""The methods that come with the package: one file each, found by its name. What they share is in `dct.fits.shared`."""

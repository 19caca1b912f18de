"""Writers of NSD's own file layout."""

"""The study of shortcuts: which site's scanner mark the classifier takes for a sign of a class.

Every kind of mark is tested at every site for every class, by three tests: the mark is pasted on
images, it is removed from images that have it, and counterfactuals without the class show whether
its place changes. The study is not told whether a mark was planted.
"""

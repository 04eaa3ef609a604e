"""Did it reproduce, and is what lies here whole?"""
